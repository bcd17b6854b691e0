"""What every part of the package uses: atomic files, the Hub, registries."""
