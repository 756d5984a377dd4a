"""What moves and how it is kept: messages, topics, the bus, the consumer loop, and the folds over what was published."""
