"""The first stage of training: what is frozen is computed once and kept, and training reads it back."""
