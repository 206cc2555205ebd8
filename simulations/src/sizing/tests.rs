use super::*;

const HOUSE: &str = "
[[site]]
name = 'house'
up = '20Mbit/s'
down = '100Mbit/s'
[[site]]
name = 'parents'
up = '10Mbit/s'
down = '50Mbit/s'
[[site]]
name = 'cloud'
[[device]]
name = 'nas'
site = 'house'
admin = true
capacity = '8TB'
[[device]]
name = 'desk'
site = 'house'
capacity = '4TB'
[[device]]
name = 'box'
site = 'parents'
capacity = '4TB'
[[device]]
name = 'rented'
site = 'cloud'
capacity = '4TB'
fails = '1%'
[[device]]
name = 'phone'
site = 'house'
capacity = '0B'
online = '07:00-23:00'
";

const TB: u64 = 1_000_000_000_000;
const DEMAND: Demand = Demand {
    data: 2 * TB,
    growth: 1_000_000_000,
    from: 0,
};

fn sized(text: &str, demand: Demand) -> Sizing {
    size(&crate::file::read_mesh("x", text).unwrap(), demand)
}

fn choice_of(sizing: &Sizing, policy: Redundancy) -> &Choice {
    let found = sizing.choices.iter().find(|of| of.policy == policy);
    found.unwrap()
}

#[test]
fn first_sync_is_what_the_slowest_line_needs() {
    let sizing = sized(HOUSE, DEMAND);
    assert_eq!((sizing.holders, sizing.sites), (4, 3));
    // Three places, three copies: one at each; parents and cloud get all of it, over the 20 Mbit/s of the house.
    let three = choice_of(&sizing, Redundancy::Replicas(3));
    let up = 20e6 / 8.0 * LINE_SHARE;
    let days = three.first_sync.unwrap() / DAY;
    let wanted = 2.0 * 2e12 / up / DAY;
    assert!((0.999..1.001).contains(&(days / wanted)), "{days} {wanted}");
    assert_eq!(three.on_device[2], 2 * TB);
    assert_eq!(three.stored, 6 * TB);
    // What does not have to leave the house does not take its line.
    let one = choice_of(&sizing, Redundancy::Replicas(1));
    assert!(one.first_sync.unwrap() < three.first_sync.unwrap() / 2.0);
}

#[test]
fn what_survives_is_told_by_device_and_place() {
    let sizing = sized(HOUSE, DEMAND);
    let three = choice_of(&sizing, Redundancy::Replicas(3));
    assert_eq!((three.survives_devices, three.not_without.len()), (2, 0));
    let one = choice_of(&sizing, Redundancy::Replicas(1));
    assert_eq!(one.survives_devices, 0);
    assert_eq!(one.not_without, ["house", "parents", "cloud"]);
    assert!(one.loss_a_year > 0.1, "{}", one.loss_a_year);
    let two = choice_of(&sizing, Redundancy::Replicas(2));
    assert!(three.loss_a_year < two.loss_a_year / 10.0);
    assert!(two.loss_a_year < one.loss_a_year / 10.0);
    // 2+1 on three places: one piece at each.
    let coded = choice_of(&sizing, Redundancy::Erasure(2, 1));
    assert!(coded.not_without.is_empty());
    assert_eq!(coded.stored, 3 * TB);
    // The phone holds nothing.
    assert!(sizing.choices.iter().all(|choice| choice.on_device[4] == 0));
}

#[test]
fn recommended_is_what_stores_least_of_what_will_do_or_what_is_wrong_is_said() {
    let sizing = sized(HOUSE, DEMAND);
    let (place, wrong) = sizing.recommended.clone().unwrap();
    assert_eq!(
        sizing.choices[place].policy,
        Redundancy::Replicas(3),
        "{wrong:?}"
    );
    assert!(wrong.is_empty(), "{wrong:?}");
    // All at one place.
    let one_place = "[[device]]\nname = 'a'\nadmin = true\ncount = 4\ncapacity = '3TB'\n";
    let sizing = sized(one_place, DEMAND);
    let (_, wrong) = sizing.recommended.unwrap();
    assert!(
        wrong.iter().any(|why| why.contains("at one place")),
        "{wrong:?}"
    );
    // No room at all.
    let none = sized(
        "[[device]]\nname = 'a'\nadmin = true\ncount = 3\ncapacity = '100GB'\n",
        DEMAND,
    );
    assert!(none.recommended.is_none());
    assert_eq!(none.choices[0].full_after_days, Some(0.0));
    // Nobody who holds anything.
    let nobody = sized(
        "[[device]]\nname = 'a'\nadmin = true\ncapacity = '0B'\n",
        DEMAND,
    );
    assert!(nobody.choices.is_empty() && nobody.recommended.is_none());
}

#[test]
fn month_is_growth_by_what_is_held_and_the_mesh_itself() {
    let sizing = sized(HOUSE, DEMAND);
    let three = choice_of(&sizing, Redundancy::Replicas(3));
    let itself = sizing.overhead.a_day_total() * 30.0;
    // Each of five writes a fifth; the rented one holds a copy of everything.
    let (sent, got) = three.month[3];
    let month = 30e9;
    let wanted = month * 0.8 + itself;
    assert!(
        (0.999..1.001).contains(&(real(got) / wanted)),
        "{got} {wanted}"
    );
    let wanted = month / 5.0 * 2.0 + itself;
    assert!(
        (0.999..1.001).contains(&(real(sent) / wanted)),
        "{sent} {wanted}"
    );
    // Five devices at rest take megabytes a day, not gigabytes, and not nothing.
    let idle: f64 = sizing.overhead.idle.values().sum();
    assert!((1e4..1e8).contains(&idle), "{idle}");
    let gossip = sizing.overhead.an_entry.get("gossip").copied().unwrap();
    assert!((100.0..20_000.0).contains(&gossip), "{gossip}");
}

#[test]
fn devices_that_are_never_on_together_never_finish() {
    let text = "[[device]]\nname = 'a'\nadmin = true\nonline = '08:00-10:00'\n[[device]]\nname = 'b'\nonline = '12:00-14:00'\n";
    let sizing = sized(text, DEMAND);
    assert_eq!(choice_of(&sizing, Redundancy::Replicas(2)).first_sync, None);
}

#[test]
fn of_many_devices_it_is_said_how_it_was_reckoned() {
    let text = "[[device]]\nname = 'a'\nadmin = true\ncount = 1500\n";
    let sizing = sized(text, DEMAND);
    assert!(sizing.overhead.devices <= 48);
    let all = sizing.assumptions.join("\n");
    assert!(
        all.contains("logarithm") && all.contains("beyond 1000"),
        "{all}"
    );
}

#[test]
fn sizes_are_read_as_typed() {
    assert_eq!(bytes("2TB"), Ok(2 * TB));
    assert_eq!(bytes("1.5GB"), Ok(1_500_000_000));
    assert_eq!(a_day("30GB/month"), Ok(1_000_000_000));
    assert_eq!(a_day("7GB/week"), Ok(1_000_000_000));
    for wrong in ["5GB", "5GB/hour", "-5GB/day", "GB/day", "/day", ""] {
        assert!(a_day(wrong).is_err(), "{wrong}");
    }
}
