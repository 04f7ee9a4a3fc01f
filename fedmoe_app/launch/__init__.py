"""The command line's side: start Flower's processes, run the app, end what was started."""
