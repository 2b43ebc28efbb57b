"""Methods that learn nothing before the test and adapt to each test image, or to the test images seen so far."""
