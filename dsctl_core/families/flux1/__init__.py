"""The FLUX.1 family: see README.md beside this file."""
