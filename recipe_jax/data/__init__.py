"""Data: sources to records to batches, in numpy and arrow."""
