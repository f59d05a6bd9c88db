"""Build, verify, load and publish the data set folder, which the stock `datasets` library loads."""
