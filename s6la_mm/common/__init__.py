"""What every floor above the backbones shares: errors, files, configs and the command line."""
