"""The Z-Image family: text to image with a single-stream transformer; Omni also reads reference images."""
