"""Few-shot data: sampling, folders and Hub data sets, images."""
