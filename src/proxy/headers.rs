//! What of a head travels on: hop-by-hop fields, refusals of what is not HTTP.
