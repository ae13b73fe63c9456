"""Model hubs (ModelScope, Hugging Face): list, download and upload files."""
