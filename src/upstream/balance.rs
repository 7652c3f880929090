//! Which of several `to`: the less loaded of two random ones.
