"""Translate the configs of other training tools into options of `dsctl train`. Imports no torch.

A tool is one module: how its files are read, and a table from its keys to rules. Every key ends up in `Draft.mapped` or
in `Draft.without_counterpart`; none is dropped.
"""
