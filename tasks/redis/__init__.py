"""Redis as Veil reaches it: addresses, clients, the primary of sentinels, errors and scripts."""
