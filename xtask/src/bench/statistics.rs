//! Medians and quantiles of small samples. Pure; no sample may be empty or hold a NaN.

/// The middle value; of an even number of values the mean of the two in the middle.
pub fn median(sample: &[f64]) -> f64 {
    let sorted = sorted(sample);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 }
}

/// The smallest value that at least this share (0 to 1) of all values do not exceed (nearest rank). For 0.99 of fewer than 101 values
/// that is the largest.
pub fn quantile(sample: &[f64], share: f64) -> f64 {
    let sorted = sorted(sample);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Each value over its partner of the same pair.
pub fn ratios(values: &[f64], partners: &[f64]) -> Vec<f64> {
    values.iter().zip(partners).map(|(value, partner)| value / partner).collect()
}

fn sorted(sample: &[f64]) -> Vec<f64> {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_samples() {
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
        assert_eq!(quantile(&[2.0, 1.0, 3.0], 0.99), 3.0);
        assert_eq!(quantile(&[2.0, 1.0, 3.0], 0.0), 1.0);
        let hundred_and_one: Vec<f64> = (1..=101).map(f64::from).collect();
        assert_eq!(quantile(&hundred_and_one, 0.99), 100.0);
        assert_eq!(ratios(&[2.0, 9.0], &[4.0, 3.0]), [0.5, 3.0]);
    }

    proptest! {
        #[test]
        fn a_quantile_is_the_smallest_value_with_enough_at_or_below(
            sample in prop::collection::vec(0.0f64..1e6, 1..200), share in 0.0f64..=1.0
        ) {
            let found = quantile(&sample, share);
            let at_most = |limit: f64| sample.iter().filter(|v| **v <= limit).count() as f64;
            prop_assert!(sample.contains(&found));
            prop_assert!(at_most(found) >= share * sample.len() as f64);
            let below = sample.iter().copied().filter(|v| *v < found).fold(f64::NEG_INFINITY, f64::max);
            prop_assert!(below == f64::NEG_INFINITY || at_most(below) < share * sample.len() as f64);
        }

        #[test]
        fn half_lie_on_either_side_of_the_median(sample in prop::collection::vec(0.0f64..1e6, 1..200)) {
            let middle = median(&sample);
            prop_assert!(sample.iter().filter(|v| **v < middle).count() * 2 <= sample.len());
            prop_assert!(sample.iter().filter(|v| **v > middle).count() * 2 <= sample.len());
        }
    }
}
