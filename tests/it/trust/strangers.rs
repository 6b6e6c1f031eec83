//! Other users of the machine: what they are told, and what they cannot take away.

use super::home;
use crate::support::needs_fuse;

#[test]
fn status_shows_what_others_have_mounted() {
    needs_fuse!();
    let home = home(7);
    let told = home.script(
        r#"
        point=$PWD/mnt
        as $uid './restorefs mount -d x.tar mnt'
        mkdir ../theirs
        chown 8:8 ../theirs
        as 8 "./restorefs mount -d x.tar ../theirs"
        at_end='umount -l ../theirs 2>/dev/null || true'
        mine() { awk -v point="$1" '/^\// { shown = $0 == point } shown'; }
        echo == all
        as 8 './restorefs status' >all && echo "exit $?"
        mine $point <all
        mine $(realpath ../theirs) <all | head -2
        echo == json
        as 8 './restorefs status --json' | grep -F "\"$point\""
        echo == named
        as 8 './restorefs status mnt' || echo "exit $?"
        echo == root
        ./restorefs status | mine $point | head -2
        as $uid './restorefs umount mnt'
        as 8 './restorefs umount ../theirs'
        rm -rf /tmp/restorefs-8
        "#,
    );
    let parts: Vec<&str> = told.split("== ").skip(1).collect();
    let point = home.path.join("mnt");
    let point = point.display();
    let foreign = format!("all\nexit 0\n{point}\n  owner      lp (7): only they and root may ask how it stands\n");
    assert!(parts[0].starts_with(&foreign), "{told}");
    assert!(parts[0].contains("\n  source     x.tar\n") && parts[0].ends_with("  state      complete\n"), "{told}");
    let json: serde_json::Value = serde_json::from_str(parts[1].strip_prefix("json\n").unwrap()).unwrap();
    assert_eq!((&json["owner"], &json["source"]), (&7.into(), &"x.tar".into()));
    assert!(parts[2].contains("belongs to another user") && parts[2].ends_with("exit 1\n"), "{told}");
    assert!(parts[3].contains("  state      complete\n"), "{told}");
}
