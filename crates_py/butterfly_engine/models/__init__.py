"""From a checkpoint's config and tensors to a module that runs some of its layers."""
