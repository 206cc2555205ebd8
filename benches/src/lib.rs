//! Speed and size of the data path.
