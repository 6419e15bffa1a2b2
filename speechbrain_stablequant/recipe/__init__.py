"""The block, the mixin, and passes over a Brain that leave no trace."""
