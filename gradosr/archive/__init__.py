"""Images in an archive: shards, readers, encoded images and their pixels; and the packing of images into shards."""
