"""Published data sets of pictures, in the files that their publishers made."""
