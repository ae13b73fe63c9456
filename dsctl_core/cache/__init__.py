"""What the first stage of training leaves: entries at rest, addressed by what they were made of, safe to open."""
