"""From labelled images to batches: splits, the plan of an epoch, reading, decoding, augmentation."""
