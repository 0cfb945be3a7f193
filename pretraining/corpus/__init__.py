"""From raw text of any size to filtered, deduplicated, mixed and shuffled token shards."""
