"""What challenge platforms take: a folder that stands alone, and a check of it by the platform's own protocol."""
