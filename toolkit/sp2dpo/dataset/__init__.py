"""The data set folder that anybody can load: build, verify, load, publish."""
