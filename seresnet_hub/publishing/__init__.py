"""Put model folders on the Hub, and verify what is there."""
