"""What tests lean on: real servers, a proxy to break connections with, a scripted broker, waiting without sleeping."""
