"""What challenge platforms take: folders that stand alone, and a check of them by the platform's own protocol."""
