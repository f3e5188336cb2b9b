//! The copy's decisions, as scenarios.

use super::*;
use proptest::prelude::*;

#[test]
fn each_end_of_a_copy_names_its_cause() {
    let diagnose = |error, operation, free| diagnose("vd0", Path::new("/srv/backup"), error, operation, free, 5);
    let (class, cause, _) = diagnose("No space left on device", Some("write"), None);
    assert_eq!(class, ErrorClass::Repository);
    assert!(cause.contains("No space left") && cause.contains("/srv/backup"), "{cause}");
    let (class, cause, _) = diagnose("Permission denied", Some("read"), Some(0));
    assert_eq!((class, cause.contains("is full")), (ErrorClass::Fleecing, true), "{cause}");
    let (class, cause, _) = diagnose("Permission denied", Some("read"), Some(1 << 40));
    assert_eq!((class, cause.contains("longer than 5 s")), (ErrorClass::Fleecing, true), "{cause}");
    assert!(diagnose("Input/output error", Some("read"), None).1.contains("of the VM could not be read"));
    assert!(diagnose("Operation canceled", None, None).1.contains("from outside"));
}

#[test]
fn a_slow_speed_limit_is_no_stall() {
    assert_eq!(stall_limit_ms(120, None), 120_000);
    assert_eq!(stall_limit_ms(1, Some(1 << 20)), 8_000);
}

proptest! {
    #[test]
    fn a_stall_is_seen_exactly_when_nothing_moves_for_longer_than_the_limit(
        limit in 1u64..1000, steps in proptest::collection::vec((1u64..500, any::<bool>()), 1..50)
    ) {
        let (mut stall, mut now, mut moved, mut bytes) = (Stall::new(limit), 0, 0, 0);
        for (ms, moves) in steps {
            now += ms;
            if moves {
                bytes += 1;
                moved = now;
            }
            prop_assert_eq!(stall.observe(now, bytes), now - moved > limit);
        }
    }
}
