"""The cache of encoded samples: entries on disk, addressed by a hash of everything that determines them."""
