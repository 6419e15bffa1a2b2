"""What every room uses: schemes and plans, numbers, packing, files, text."""
