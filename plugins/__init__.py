"""archbench's own architectures, one module each, found through the same entry points as anybody else's."""
