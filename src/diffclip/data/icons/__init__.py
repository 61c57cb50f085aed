"""Icons of the npm package @iconify/json as image-text pairs: from its files to shards of drawings"""
