"""The trained part: encoders over cached features, adapters, domain embedding, head; building, saving and loading them."""
