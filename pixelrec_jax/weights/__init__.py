"""Published weights: finding, reading and writing their files, and porting them to our names."""
