"""Files and folders on the disk: whole or not there, flushed, locked; and the folder of a model."""
