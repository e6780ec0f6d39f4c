"""Jobs under fire: thousands of them, while gateways, workers and the broker are killed."""
