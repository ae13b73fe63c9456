"""The FLUX.2 family: see README.md beside this file."""
