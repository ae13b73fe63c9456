"""The Wan VACE family: see README.md beside this file."""
