"""One file for each command; the table in dsctl/app.py says which."""
