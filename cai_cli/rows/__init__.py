"""What a row is, and where rows come from: JSONL, YAML, public formats, the Hub, stdin. No torch."""
