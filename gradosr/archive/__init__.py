"""Images in an archive: shards, readers, one encoded image, its pixels; and packing them into shards."""
