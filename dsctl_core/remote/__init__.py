"""Files in object stores and on web servers, through fsspec: list, read, fetch into a bounded folder, write, delete."""
