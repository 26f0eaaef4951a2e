"""The parts of `extractor.validation.validate`, one question a file: each takes a problem and a graph and measures one thing."""
