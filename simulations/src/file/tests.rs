//! What is wrong with a scenario is told with its line.

use super::units::{HOUR, MINUTE};
use super::*;

const GOOD: &str = "about = 'three'
duration = '2h'
[[site]]
name = 'house'
up = '20Mbit/s'
down = '100Mbit/s'
[[site]]
name = 'cloud'
[[link]]
between = ['house', 'cloud']
latency = '15ms..40ms'
loss = '0.1%'
[[device]]
name = 'desk'
site = 'house'
admin = true
[[device]]
name = 'laptop'
site = 'house'
count = 2
online = '08:00-23:30'
skew = '-3m'
[[device]]
name = 'box'
site = 'cloud'
[[work]]
what = 'lifelog'
devices = ['laptop']
every = '1m'
[[work]]
what = 'photos'
devices = ['laptop-2']
at = '1.5h'
size = '1KB..2KB'
[[fault]]
what = 'partition'
groups = [['house'], ['box']]
at = '10m'
lasts = '5m..6m'
[[fault]]
what = 'clock'
jump = '+2h'
between = ['1m', '2m']
";

#[test]
fn what_is_written_is_what_is_run() {
    let plan = read("x", GOOD).unwrap();
    assert_eq!(plan.length, Span(2 * HOUR));
    assert_eq!(plan.settle, Span(5 * MINUTE));
    let names: Vec<&str> = plan.devices.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["desk", "laptop-1", "laptop-2", "box"]);
    let laptop = &plan.devices[1];
    assert_eq!(
        (laptop.online, laptop.skew, laptop.admin),
        (Some((480, 1410)), -180_000, false)
    );
    assert_eq!(plan.sites[0].up, Some(20_000_000));
    let path = Path {
        loss: 1000,
        ..Path::new((15, 40))
    };
    assert_eq!(plan.paths, [((0, 1), path)]);
    assert_eq!(plan.works[0].devices, [1, 2]);
    assert_eq!(plan.works[0].when.times, Times::Every(Span(MINUTE)));
    assert_eq!(plan.works[1].devices, [2]);
    assert_eq!(plan.works[1].when.from, Span(90 * MINUTE));
    assert_eq!(plan.works[1].size, (1000, 2000));
    let groups = vec![vec![0, 1, 2], vec![3]];
    assert_eq!(plan.faults[0].wrong, Wrong::Partition(groups));
    assert_eq!(plan.faults[0].lasts, (Span(300_000), Span(360_000)));
    assert_eq!(plan.faults[1].wrong, Wrong::Clock(7_200_000));
}

#[test]
fn kinds_and_regions_stand_for_figures() {
    let text = GOOD
        .replacen(
            "up = '20Mbit/s'",
            "kind = 'dsl'\nregion = 'europe-central'",
            1,
        )
        .replacen(
            "name = 'cloud'",
            "name = 'cloud'\nregion = 'asia-east'\nkind = 'datacentre'",
            1,
        );
    let plan = read("x", &text).unwrap();
    let house = &plan.sites[0];
    // What is said besides holds.
    assert_eq!(
        (house.up, house.down),
        (Some(10_000_000), Some(100_000_000))
    );
    let way = plan.way(0, 1);
    assert_eq!((way.latency, way.loss), ((15 + 8, 40 + 25 + 1), 2000));
    let link = "[[link]]\nbetween = ['house', 'cloud']\nlatency = '15ms..40ms'\nloss = '0.1%'\n";
    let plan = read("x", &text.replacen(link, "", 1)).unwrap();
    assert_eq!(plan.way(1, 0).latency, (115 + 8, 172 + 25 + 1));
    assert_eq!(plan.way(0, 0), plan.sites[0].inner);
}

#[test]
fn what_is_wrong_is_named_with_line_and_key() {
    for (from, to, line, says) in [
        (
            "duration = '2h'",
            "duration = '2h'\nspeed = 3",
            3,
            "unknown field `speed`",
        ),
        (
            "up = '20Mbit/s'",
            "uplink = '20Mbit/s'",
            5,
            "unknown field `uplink`",
        ),
        ("'2h'", "'2 hours'", 2, "no length of time"),
        ("'2h'", "'-2h'", 2, "no length of time"),
        ("'2h'", "'2000000d'", 2, "`duration`"),
        ("'20Mbit/s'", "'20000000Mbit/s'", 5, "bits a second"),
        ("'20Mbit/s'", "'20'", 5, "no rate"),
        ("'15ms..40ms'", "'15s..40s'", 11, "`latency`"),
        ("'15ms..40ms'", "'40ms..15ms'", 11, "the shorter first"),
        ("'0.1%'", "'70%'", 12, "more than half"),
        (
            "['house', 'cloud']",
            "['house', 'house']",
            10,
            "not the same",
        ),
        (
            "['house', 'cloud']",
            "['house', 'moon']",
            10,
            "no site `moon`",
        ),
        ("count = 2", "count = 2000000", 20, "`count`"),
        ("site = 'cloud'", "site = 'moon'", 25, "no site `moon`"),
        ("admin = true", "admin = false", 13, "admin"),
        ("'08:00-23:30'", "'23:30-08:00'", 21, "time of day"),
        (
            "devices = ['laptop']",
            "devices = ['phone']",
            28,
            "no device or site `phone`",
        ),
        ("every = '1m'", "every = '1ms'", 26, "more than"),
        ("size = '1KB..2KB'", "size = '1GB'", 34, "`size`"),
        ("what = 'photos'", "what = 'sleep'", 31, "do not do `sleep`"),
        ("at = '1.5h'", "at = '3h'", 33, "`at`"),
        ("lasts = '5m..6m'", "", 36, "`lasts`"),
        ("jump = '+2h'", "", 41, "`jump`"),
        ("what = 'clock'", "what = 'flood'", 41, "does not go wrong"),
        (
            "between = ['1m', '2m']",
            "between = ['1m', '2m']\n[[harm]]\nwhat = 'sulk'\ndevices = ['box']\nat = '1m'",
            45,
            "no device does `sulk`",
        ),
        (
            "between = ['1m', '2m']",
            "between = ['1m', '2m']\n[[harm]]\nwhat = 'forge'\ndevices = ['desk']\nat = '1m'",
            46,
            "let it be a member",
        ),
        (
            "between = ['1m', '2m']",
            "between = ['1m', '2m']\n[[harm]]\nwhat = 'forge'\ndevices = ['box', 'laptop']\nat = '1m'",
            45,
            "fewer than two devices",
        ),
        (
            "between = ['1m', '2m']",
            "between = ['1m', '2m']\n[[harm]]\nwhat = 'forge'\ndevices = ['box']",
            45,
            "say when",
        ),
        (
            "what = 'clock'\njump = '+2h'",
            "what = 'removed'",
            41,
            "only the words",
        ),
        ("duration = '2h'", "", 1, "`duration`"),
        (
            "site = 'cloud'\n",
            "site = 'cloud'\ncapacity = '2000000TB'\n",
            26,
            "`capacity`",
        ),
        (
            "site = 'cloud'\n",
            "site = 'cloud'\nfails = '100%'\n",
            26,
            "`fails`",
        ),
        (
            "what = 'clock'\njump = '+2h'",
            "what = 'rot'\nage = '1m'",
            42,
            "`age` is for restored",
        ),
        (
            "what = 'clock'\njump = '+2h'",
            "what = 'storm'\nlasts = '1m'",
            41,
            "`loss`",
        ),
        (
            "what = 'clock'\njump = '+2h'",
            "what = 'storm'\nloss = '60%'\nlasts = '1m'",
            42,
            "more than half",
        ),
        (
            "what = 'clock'\njump = '+2h'",
            "what = 'moved'\nlasts = '1m'",
            42,
            "does not end",
        ),
        (
            "what = 'clock'\njump = '+2h'",
            "what = 'restored'",
            41,
            "how old the backup is",
        ),
        (
            "what = 'clock'\njump = '+2h'",
            "what = 'rot'\nlasts = '1m'",
            42,
            "does not end",
        ),
        (
            "name = 'cloud'",
            "name = 'cloud'\nnat = 'full'",
            9,
            "is no `nat`",
        ),
        (
            "up = '20Mbit/s'\ndown = '100Mbit/s'\n[[site]]\nname = 'cloud'",
            "nat = 'cone'\n[[site]]\nname = 'cloud'\nnat = 'symmetric'",
            5,
            "never meet",
        ),
        (
            "name = 'cloud'",
            "name = 'cloud'\nkind = 'modem'",
            9,
            "one of datacentre, fibre",
        ),
        (
            "name = 'cloud'",
            "name = 'cloud'\nregion = 'moon'",
            9,
            "one of europe-west",
        ),
        (
            "name = 'cloud'",
            "name = 'cloud'\nmtu = '99B'",
            9,
            "`mtu` is",
        ),
        (
            "name = 'cloud'",
            "name = 'cloud'\nreordered = '60%'",
            9,
            "`reordered` is more",
        ),
        (
            "loss = '0.1%'",
            "bursts = { loss = '20%', every = '1s', lasts = '2s' }",
            12,
            "no longer than `every`",
        ),
        (
            "loss = '0.1%'",
            "bursts = { loss = '20%', lasts = '2s' }",
            12,
            "missing field `every`",
        ),
        (
            "[[link]]",
            "[[line]]\nsite = 'cloud'\nhours = '08:00-09:00'\n[[link]]",
            11,
            "say what the line is",
        ),
        (
            "[[link]]",
            "[[line]]\nsite = 'cloud'\nhours = '08:00-09:00'\nup = '1Mbit/s'\nshut = true\n[[link]]",
            13,
            "say no more of it",
        ),
        (
            "[[link]]",
            "[[line]]\nsite = 'moon'\nhours = '08:00-09:00'\nshut = true\n[[link]]",
            10,
            "no site `moon`",
        ),
        ("skew = '-3m'", "cpu = '11s'", 22, "`cpu`"),
        ("skew = '-3m'", "syncs = '9ms..2ms'", 22, "`syncs`"),
        (
            "groups = [['house'], ['box']]",
            "groups = [['house'], ['box'], ['desk']]\none-way = true",
            38,
            "name two",
        ),
        (
            "what = 'clock'\njump = '+2h'",
            "what = 'full'\nchance = '2%'\nlasts = '1m'",
            42,
            "`chance` is for unlucky",
        ),
        (
            "what = 'clock'\njump = '+2h'",
            "what = 'slow'\nlasts = '1m'",
            41,
            "how much longer",
        ),
        (
            "what = 'clock'\njump = '+2h'",
            "what = 'slow'\ncpu = '2h'\nlasts = '1m'",
            42,
            "a minute longer at most",
        ),
        (
            "what = 'clock'\njump = '+2h'",
            "what = 'storm'\nloss = '2%'\ndevices = ['box']\nlasts = '1m'",
            43,
            "`devices` is for",
        ),
    ] {
        let text = GOOD.replacen(from, to, 1);
        assert!(text != GOOD, "{from}");
        let error = read("x", &text).unwrap_err();
        assert!(error.what.contains(says), "{to}: {error}");
        assert_eq!(error.line, line, "{to}: {error}");
    }
    // For planning it need not say how long.
    let text = GOOD.replacen("duration = '2h'", "", 1);
    let planned = read_mesh("x", &text).unwrap();
    assert_eq!(planned.length, Span(24 * HOUR));
    // Cut anywhere it is a scenario or an error, and nothing worse.
    for end in 0..GOOD.len() {
        let _ = read("x", &GOOD[..end]);
    }
}
