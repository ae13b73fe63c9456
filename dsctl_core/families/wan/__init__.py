"""The Wan family: see README.md beside this file."""
