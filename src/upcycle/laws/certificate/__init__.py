"""What a fit is worth: leave-one-out, bootstrap, profiles, likelihoods."""
