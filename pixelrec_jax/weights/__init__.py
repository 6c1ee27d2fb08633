"""Published weights: finding, reading and writing files, mapping tensors to our parameters."""
