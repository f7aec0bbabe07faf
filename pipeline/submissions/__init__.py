"""What challenge platforms take: folders that need nothing of this package."""
