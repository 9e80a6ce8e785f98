"""Numbers: tensors in, frozen results of ndarrays out. Nothing here knows of Lightning or of pictures."""
