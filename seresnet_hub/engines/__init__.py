"""Run exported files, each in its own runtime, as models that predictions and measurements take."""
